"""What becomes of an image before its encoder: read, fetched, decoded, made to fit."""
