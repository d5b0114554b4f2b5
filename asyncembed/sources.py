"""The former name of `asyncembed.readers`."""

from asyncembed.readers import IMAGE_SUFFIXES, csv_records, image_paths, json_lines, text_lines

__all__ = ["IMAGE_SUFFIXES", "csv_records", "image_paths", "json_lines", "text_lines"]
