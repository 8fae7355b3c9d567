// Prints the library's version, and what a model is when one is given.
#include <mamba_edge.h>

#include <cstdio>

int main(int argc, char** argv) {
  std::printf("mamba-edge %s\n", mamba_edge_version());
  if (argc < 2) return 0;
  mamba_edge_error error;
  mamba_edge_model* model = nullptr;
  if (mamba_edge_model_open(argv[1], nullptr, &model, &error) != MAMBA_EDGE_OK) {
    std::fprintf(stderr, "%s\n", error.message);
    return 1;
  }
  mamba_edge_model_info info;
  mamba_edge_model_get_info(model, &info);
  std::printf("%s, %d layers, %lld parameters, %s kernels\n", info.architecture,
              static_cast<int>(info.n_layer), static_cast<long long>(info.n_parameters), info.isa);
  mamba_edge_model_close(model);
  return 0;
}
