"""Repos of rerankers: classifiers of pairs with one label, and language models whose answer is the score."""

from collections.abc import Mapping
from dataclasses import replace

from asyncembed.catalogue.described import (
    DescribedRepo,
    architectures,
    check_task,
    declared_limit,
    is_called,
    preferring,
    size_in,
    with_settings,
)
from asyncembed.catalogue.spec import ModelSpec
from asyncembed.repo_files import shown


def reranker_spec(repo: DescribedRepo, spec: ModelSpec) -> ModelSpec:
    """A model for sequence classification whose one label is the score, or a language model whose answer is."""
    modules = repo.modules() or []
    spec = with_settings(replace(spec, max_length=declared_limit(repo)), **_own_activation(repo))
    answers = [module.prefix for module in modules if module.kind == "LogitScore"]
    answering = is_called(repo, "ForCausalLM") and (bool(modules) or _has_chat_template(repo))
    if answers or answering or repo.overrides.template is not None:
        kinds = [module.kind for module in modules]
        if kinds not in ([], ["Transformer"], ["Transformer", "LogitScore"]):
            raise repo.unsupported(
                f"its modules are {', '.join(map(shown, kinds[:8]))}; those of a language model that is a reranker are "
                "Transformer and LogitScore"
            )
        return _causal_reranker(repo, spec, answers[0] if answers else None)
    if is_called(repo, "ForCausalLM"):
        raise repo.unsupported(
            f"config.json calls it {shown(architectures(repo)[0])}, and it has no chat template that says how such a "
            'reranker reads a pair: template="qwen3-reranker" or template="mxbai-rerank-v2" says it'
        )
    config = repo.json("config.json")
    check_task(repo, "ForSequenceClassification")
    id2label = config.get("id2label")
    labels = size_in(config, "num_labels") or (len(id2label) if isinstance(id2label, dict) else 1)
    if labels != 1:
        raise repo.unsupported(f"it is a classifier of {labels} labels; a reranker has one, the score")
    forms = repo.json("sentence_bert_config.json").get("modality_config")
    if modules and isinstance(forms, dict) and "message" in forms:
        # Its chat template says what it reads of a pair, and no answer but its score is taken.
        return with_settings(_instructed(replace(spec, encoder="causal_reranker")), yes=None, no=None)
    spec = replace(spec, encoder="cross_encoder")
    if prompt := spec.prompts.get(spec.default_prompt or ""):  # without one the fingerprint stays what it was
        spec = with_settings(spec, prompt=prompt)
    return preferring(repo, "logits", spec)


def _own_activation(repo: DescribedRepo) -> dict[str, object]:
    """What the repo says is done to its scores, in one of the three places where versions have written it."""
    config = repo.json("config.json")
    nested = config.get("sentence_transformers")
    said = (
        repo.json("config_sentence_transformers.json").get("activation_fn")
        or (nested.get("activation_fn") if isinstance(nested, dict) else None)
        or config.get("sbert_ce_default_activation_function")
    )
    if not isinstance(said, str):
        return {}
    known = {"Identity": "none", "Sigmoid": "sigmoid"}
    name = said.rsplit(".", 1)[-1]
    return {"own_activation": known[name] if said.startswith("torch.nn.") and name in known else said}


_ANSWERS: Mapping[str | None, tuple[str, str]] = {
    None: ("yes", "no"),  # as sentence-transformers
    "qwen3-reranker": ("yes", "no"),
    "mxbai-rerank-v2": ("1", "0"),
}
"""What a language model answers, by its template, where no module says it."""


def _causal_reranker(repo: DescribedRepo, spec: ModelSpec, module: str | None) -> ModelSpec:
    """A language model that answers; `module` is where the files of its module LogitScore lie, if it has one."""
    template = repo.overrides.template
    yes: object
    no: object
    yes, no = _ANSWERS.get(template, _ANSWERS[None])
    if module is not None:
        said = repo.json(f"{module}config.json")
        yes, no = said.get("true_token_id"), said.get("false_token_id")
        if not _is_id(yes) or not (no is None or _is_id(no)):
            raise repo.unsupported(f"{module}config.json has no usable true_token_id and false_token_id")
    spec = _instructed(replace(spec, encoder="causal_reranker"))
    spec = with_settings(spec, yes=yes, no=no)
    if template is not None:
        spec = with_settings(spec, template=template)
    return preferring(repo, "logits", spec)


def _has_chat_template(repo: DescribedRepo) -> bool:
    return "chat_template.jinja" in repo.files or "chat_template" in repo.json("tokenizer_config.json")


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _instructed(spec: ModelSpec) -> ModelSpec:
    """The spec of a model whose default prompt is its instruction."""
    if spec.default_prompt is None or not spec.prompts[spec.default_prompt]:
        return spec
    return with_settings(spec, instruction=spec.prompts[spec.default_prompt])
