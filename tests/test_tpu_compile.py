"""Programs for TPU slices, compiled with the TPU compiler and without a TPU: memory, FLOPs, and what chips exchange."""

import pytest

pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
