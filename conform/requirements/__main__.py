"""``python -m conform.requirements`` writes ``catalogue.json`` anew from ``requirements.yaml``."""

from conform.requirements import GENERATED, generate

GENERATED.write_text(generate(), encoding="utf-8")
