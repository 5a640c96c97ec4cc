"""A page to try a model on one's own pictures: ``python -m opir_lightning.page``."""
