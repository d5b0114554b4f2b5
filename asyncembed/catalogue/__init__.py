"""What the models are: data (`spec`), names (`lookup`), and a repo's own files (`pipeline`, `limits`)."""
