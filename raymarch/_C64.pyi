"""The core with double geometry: the same ops, for gradient checks."""

from raymarch._C import *
