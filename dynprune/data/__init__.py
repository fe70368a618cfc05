"""Read segmentation data sets, augment them, and make the embedded one."""
