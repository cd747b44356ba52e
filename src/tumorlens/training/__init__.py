"""From settings to a trained run folder."""

import os

from tumorlens.urls import check_address

# timm imports the client of the model hub, and that fails, with a traceback, where the
# port is no number.
if "HF_ENDPOINT" in os.environ:
    check_address(os.environ["HF_ENDPOINT"], name="HF_ENDPOINT")
