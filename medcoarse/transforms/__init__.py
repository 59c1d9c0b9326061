"""MONAI transforms that draw and combine coarse annotations: `array` for arrays, `dictionary` for dictionaries."""
