"""From files of every layout to labels and 8-bit images of one size."""
