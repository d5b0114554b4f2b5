"""What the models are: data (`spec`), names (`lookup`), and a repo's own configuration (`from_repo`)."""
