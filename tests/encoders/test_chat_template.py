import json
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncembed.encoders.chat_template import read_frames
from asyncembed.encoders.pair_prompts import Frame
from asyncembed.errors import RuntimeMissingError, UnsupportedModelError

PLAIN = "{{ messages[-2].content }}|{{ messages[-1].content }}"


def write(directory: Path, source: str, **config: Any) -> Path:
    (directory / "chat_template.jinja").write_text(source, "utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return directory


def filled(frames: tuple[Frame, Frame], query: str = "q", document: str = "d") -> tuple[str, str]:
    instructed, plain = frames
    return instructed.filled((query, document), "i"), plain.filled((query, document), "ignored")


@pytest.mark.parametrize(
    ("source", "instructed", "plain"),
    [
        (PLAIN, "q|d", "q|d"),
        (
            "{% for m in messages %}\n<{{ m.role }}>{{ m['content'] }}</{{ m.role }}>\n{% endfor %}\nend",
            "<system>i</system>\n<query>q</query>\n<document>d</document>\nend",
            "<query>q</query>\n<document>d</document>\nend",
        ),
        ("{{ bos_token + '(' + messages[-2].content ~ '!' }}{{ nothing }}" + PLAIN, "<s>(q!q|d", "<s>(q!q|d"),
        (
            (
                "{% set ns = namespace(q='') %}{% for m in messages if m.role in ['query'] %}{% set ns.q = m.content %}"
                "{% endfor %}{{ ns.q }}/"
                "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
            ),
            "q/d",
            "q/d",
        ),
    ],
    ids=["plain", "loop", "sums", "namespace"],
)
def test_a_template_gives_the_words_around_a_pair(source: str, instructed: str, plain: str, tmp_path: Path) -> None:
    write(tmp_path, source, bos_token={"content": "<s>"})
    assert filled(read_frames(tmp_path)) == (instructed, plain)


def test_a_template_that_strips_texts_strips_all_of_them(tmp_path: Path) -> None:
    write(tmp_path, "{{ messages[-2].content | trim }}|{{ messages[-1].content.strip() }}")
    assert filled(read_frames(tmp_path), " q ", "d\n") == ("q|d", "q|d")
    write(tmp_path, PLAIN)
    assert filled(read_frames(tmp_path), " q ", "d\n") == (" q |d\n", " q |d\n")


def test_a_template_may_take_texts_as_parts_of_messages(tmp_path: Path) -> None:
    write(tmp_path, "{{ messages[-2].content[0].text }}|{{ messages[-1].content[0]['text'] }}")
    assert filled(read_frames(tmp_path)) == ("q|d", "q|d")


def test_a_template_may_ask_what_is_the_same_of_all_texts(tmp_path: Path) -> None:
    source = "{% if messages[-1].content and messages[-1].content is string and messages[-1].content is defined %}"
    write(tmp_path, source + PLAIN + "{% endif %}")
    assert filled(read_frames(tmp_path)) == ("q|d", "q|d")


def test_a_template_of_the_tokenizer_s_configuration_counts_where_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": PLAIN}), "utf-8")
    assert filled(read_frames(tmp_path)) == ("q|d", "q|d")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "among words as they",
        ),
        ("{{ messages[-2].content }}", "among words as they are"),
        ("{{ messages[-2].content | upper }}{{ messages[-1].content }}", "among words as they are"),
        ("{{ messages[-2].content | trim }}{{ messages[-1].content }}", "among words as they are"),
        ("{{ messages[-2].content[:3] }}{{ messages[-1].content }}", "among words as they are"),
        ("{{ raise_exception('no pairs') }}", "fails: TemplateError: no pairs"),
        ("{{ messages }}", "fails: TemplateError: it prints a value of the type list"),
        ("{% if %}", "cannot be rendered"),
        ("{{ messages | tojson }}", "cannot be rendered: No filter named 'tojson'"),
        ("x" * 9000, "has no chat template"),
        # What would be otherwise for other texts.
        (
            "{% for m in messages %}{% if m.content | length < 30 %}{{ m.content }}{% endif %}{% endfor %}",
            "among words",
        ),
        ("{% for m in messages %}{{ 'x' if 'Query' in m.content }}{{ m.content }}{% endfor %}", "among words"),
        ("{% for m in messages %}{{ 'x' if m.content.strip() == 'a' }}{{ m.content }}{% endfor %}", "among words"),
        ("{% for m in messages %}{{ 'x' if m.content is lower }}{{ m.content }}{% endfor %}", "No test named 'lower'"),
        (
            "{% for m in messages %}{{ 'x' if m.content | int > 5 }}{{ m.content }}{% endfor %}",
            "takes a text for a number",
        ),
        ("{% for m in messages %}{{ m.content | first }}{% endfor %}", "among words"),
        # What would take long, or much memory.
        ("{{ " + "+".join(["messages[0].content"] * 300) + " }}", "nested more than 30 deep"),
        ("{{ " + "[0]".join(["messages"] + [""] * 1000) + " }}", "nested more than 30 deep"),
        ("{{ " + "9" * 5000 + " }}", "cannot be rendered"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it has Macro in line 1"),
        ("{% for a in range(9) %}{% for b in range(9) %}{% endfor %}{% endfor %}", "loops in loops"),
        ("{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}", "it calls loop"),
        ("{% for a in range(1000000000) %}x{% endfor %}", "fails: TemplateError: a loop of too many turns"),
        ("{% set a = 'aaaaaaaa' %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}", "it has Concat in line 1"),
        ("{% set a = 'aaaaaaaa' %}" + "{% set a = a + a %}" * 40 + "{{ a }}", "it has Add in line 1"),
        ("{{ 'a' * 1000000000 }}", "it has Mul in line 1"),
        ("{{ 9 ** 999999999 }}", "it has Pow in line 1"),
        ("{% set a %}{{ 'a' }}{% endset %}", "it has AssignBlock in line 1"),
        ("{% set a = [a, a] %}", "it has List in line 1"),
        ("{{ '%0999999999d' % 1 }}", "it has Mod in line 1"),
        ("{{ 'a'.ljust(1000000000) }}", "it calls ljust in line 1"),
        ("{{ 'a'.__class__.__mro__ }}", "fails: SecurityError"),
        ("{{ ''.join(messages) }}", "it calls join in line 1"),
        ("{{ cycler.__init__ }}", "among words as they are"),
        ("{% include 'config.json' %}", "it has Include in line 1"),
        ("{% for a in range(90) %}" + "x" * 5000 + "{% endfor %}", "makes a text of too many characters"),
    ],
)
@pytest.mark.timeout(20)
def test_another_template_is_refused(source: str, reason: str, tmp_path: Path) -> None:
    write(tmp_path, source)
    with pytest.raises(UnsupportedModelError) as refused:
        read_frames(tmp_path)
    assert reason in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_without_jinja2_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(RuntimeMissingError, match=r'pip install "asyncembed\[chat-templates\]"'):
        read_frames(write(tmp_path, PLAIN))
