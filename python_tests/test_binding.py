"""What the door between Python and the core takes, and what it says of everything else."""

import ctypes

import numpy as np
import pytest
import torch

from raymarch import _C
from raymarch.ops.pixels import gather_pixels

IMAGES, INDEX = np.arange(12, dtype=np.uint8), np.array([3, 0])


def gather(images, index):
    colour = np.full((2, 3), np.nan, np.float32)
    _C.gather_pixels(images, index, colour)
    return colour


class Field(ctypes.Structure):
    """DLTensor of the public ABI, followed by the rest of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Bytes:
    """Twelve bytes in DLPack, `lanes` to an entry."""

    def __init__(self, lanes, name=b"dltensor"):
        self.values = (ctypes.c_uint8 * (12 * lanes))(*range(12 * lanes))
        self.shape, self.name = (ctypes.c_int64 * 1)(12), name
        self.field = Field(
            ctypes.addressof(self.values), (ctypes.c_int32 * 2)(1, 0), 1, 1, 8, lanes,
            ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64)), None, 0, None, None,
        )  # fmt: skip

    def __dlpack__(self):
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(ctypes.addressof(self.field), self.name, None)


@pytest.mark.parametrize("images", [IMAGES, torch.from_numpy(IMAGES), Bytes(1)])
def test_arrays_of_any_library_are_taken(images):
    index = torch.from_numpy(INDEX) if isinstance(images, torch.Tensor) else INDEX
    want = np.array([[9, 10, 11], [0, 1, 2]], np.float32) / 255
    np.testing.assert_allclose(gather(images, index), want, rtol=1e-6)


def test_the_shape_of_an_array_is_read_while_it_is_alive():
    """NumPy's shape goes with its capsule; it had been read after that."""
    for _ in range(50):
        with pytest.raises(TypeError, match="gather_pixels: colour has dtype float64, expected float32"):
            _C.gather_pixels(IMAGES, INDEX, np.zeros((2, 3)))
        with pytest.raises(ValueError, match="gather_pixels: colour has 5 rays, expected 2"):
            _C.gather_pixels(IMAGES, INDEX, np.zeros((5, 3), np.float32))
        with pytest.raises(ValueError, match="gather_pixels: index has 2 dimensions, expected 1"):
            _C.gather_pixels(IMAGES, INDEX[None], np.zeros((2, 3), np.float32))


def one_sentence(error):
    assert "\n" not in str(error.value) and "torch" not in str(error.value)


def test_a_tensor_on_a_foreign_device_is_told_in_one_sentence():
    images, index = torch.from_numpy(IMAGES), torch.zeros(2, dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="index is on the device meta, expected the CPU or a CUDA") as error:
        gather_pixels(images, index, 3)
    one_sentence(error)


def test_a_tensor_without_memory_of_its_own_is_told_in_one_sentence():
    index = torch.zeros(2, 2, dtype=torch.int64).to_sparse()
    with pytest.raises(TypeError, match="index cannot be handed over through DLPack: ") as error:
        _C.gather_pixels(torch.from_numpy(IMAGES), index, torch.zeros(2, 3))
    one_sentence(error)


def test_entries_of_several_numbers_are_refused():
    with pytest.raises(TypeError, match="gather_pixels: images has 4 numbers per entry, expected 1"):
        gather(Bytes(4), INDEX)


def test_what_is_no_array_is_refused():
    with pytest.raises(TypeError, match="images is a list, expected an array"):
        gather([1, 2], INDEX)
    with pytest.raises(TypeError, match="images cannot be handed over through DLPack: "):
        gather(Bytes(1, b"something else"), INDEX)
