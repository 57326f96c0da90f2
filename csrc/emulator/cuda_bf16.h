// Nothing of it is used: bfloat16 is arithmetic on bits (math/scalar.h).
#pragma once
