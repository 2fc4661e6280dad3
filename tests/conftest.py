"""What holds for every test: no hub."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before its library is imported: a name that is no path must fail at once
