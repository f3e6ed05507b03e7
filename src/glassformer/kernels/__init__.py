"""Operations for a processor, in torch and in C++ that a wheel brings built and a checkout compiles at first use.

`ops` is what the packages above call; `compile` and `variants` build and find the libraries. The C++ in `csrc/` is
three of them, each a driver over headers, with a module here that says what it takes:

- `infer.cpp` (`infer_abi`): a forward pass, `forward*.h` over `infer_model.h`, `attention.h` and `products*.h`;
- `train.cpp` (`train_abi`): a training step, `train_*.h`, `attention_train.h`, `dropout.h` and `optimizer.h`;
- `ops.cpp` (`ops_abi`): single operations, `attention_tiles.h` and `orthogonal.h` (Newton–Schulz, for training too).

Below them all: `rows.h` and `softmax.h`, the packed order of matrices (`panel.h`) and its products (`gemm*.h`), numbers
(`simd.h`, `convert.h`, `math.h`, `amx.h`), memory and threads (`arena.h`, `threads.h`), what Python hands over
(`abi.h`). `selftest.cpp` holds every fast kernel to a naive loop.
"""
