"""The row kernels in C++ and CUDA, and their build: `python -m amos_fairseq.csrc.build cuda`."""
