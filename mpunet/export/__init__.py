"""Networks for other programs: ONNX files and MONAI bundles."""

from mpunet.export.bundle import FolderReconstruction, load_bundle_weights, write_bundle
from mpunet.export.image_network import ImageNetwork
from mpunet.export.onnx_file import write_onnx
from mpunet.export.onnx_network import OnnxNetwork

__all__ = [
    "FolderReconstruction",
    "ImageNetwork",
    "OnnxNetwork",
    "load_bundle_weights",
    "write_bundle",
    "write_onnx",
]
