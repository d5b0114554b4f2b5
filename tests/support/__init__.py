"""Small models that the tests make: graphs, tokenizers, and directories of both."""
