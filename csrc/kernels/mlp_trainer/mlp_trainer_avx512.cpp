#include "kernels/mlp_trainer/mlp_trainer_body.h"

namespace pns {

StepFunctions mlp_step_avx512() { return step_functions<16>(); }

}  // namespace pns
