#include "kernels/mlp_trainer/mlp_trainer_body.h"

namespace pns {

StepFunctions mlp_step_avx2() { return step_functions<8>(); }

}  // namespace pns
