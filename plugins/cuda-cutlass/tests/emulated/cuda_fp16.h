// In the place of CUDA's, for kernels that run on a processor without a GPU.
#include "../w4_emulation.h"
