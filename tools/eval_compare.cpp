#include <CLI/CLI.hpp>
#include "tools/eval.h"
namespace mamba_edge::tools {
void add_compare(CLI::App&, CompareOptions&) {}
int run_compare(const CompareOptions&) { return 0; }
}  // namespace mamba_edge::tools
