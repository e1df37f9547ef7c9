"""Images in memory: loading, splits, and augmentation on the training device.

dataset = load_dataset(DataConfig(name="digits"))
augment = Augmentation(AugmentConfig(flip=True, translate=1), dataset.mean, dataset.std, dataset.num_classes)
inputs, targets = augment(dataset.train.images[:128], dataset.train.labels[:128])
"""

from lsmha.data.augmentation import Augmentation, normalize
from lsmha.data.images import Dataset, LabeledImages
from lsmha.data.sources import load_dataset
from lsmha.data.splits import stratified_split, stratified_subset

__all__ = [
    "Augmentation",
    "Dataset",
    "LabeledImages",
    "load_dataset",
    "normalize",
    "stratified_split",
    "stratified_subset",
]
