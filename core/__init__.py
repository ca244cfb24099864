"""One trial: a recogniser, a budget, and the smaller recogniser that comes out."""

import os

# oneDNN compiles a kernel for each shape of each product, and keeps 1,024 where nothing is said: a
# batch's speech of many lengths asks for more, and what was thrown away is compiled again. In bf16
# that took a quarter of the training time of a tiny model.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
