"""The scaling of crops against MONAI's."""

import numpy as np
import torch
from monai.transforms import ScaleIntensityRanged

from mpunet.data.transforms import ScaleHUd


def test_to_the_bit_what_monai_gives():
    hu = np.random.default_rng(0).normal(500, 1500, (1, 20, 30, 40)).astype(np.float32)
    hu[0, 0, 0, :4] = -1024, 3071, -5000, 9000
    (monai,) = ScaleIntensityRanged(
        "thin", a_min=-1024, a_max=3071, b_min=0.0, b_max=1.0, clip=True
    )({"thin": hu}).values()
    for given in (hu.copy(), torch.from_numpy(hu.copy())):
        found = ScaleHUd("thin")({"thin": given, "lung": 3})
        assert found["lung"] == 3
        assert found["thin"].dtype == torch.float32
        assert found["thin"][0, 0, 0, :4].tolist() == [0, 1, 0, 1]
        np.testing.assert_array_equal(found["thin"], monai)
