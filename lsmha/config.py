"""What to build, on which images, and how to train and time it.

Frozen, self-validating models: an instance that exists is a valid one. They serve the Python API, the sweep's
YAML and its JSON schema alike, so each field is named, typed, bounded and documented here and nowhere else.
Every model raises `pydantic.ValidationError` (a `ValueError`) naming the field, the value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import Self

RECIPE_VERSION = 5
"""Raised by each change after which the same settings train differently: results of two versions do not mix."""

AttentionKernel = Literal["materialized", "sdpa", "sdpa-padded", "sdpa-fp32"]
"""`materialized` computes the attention weights as a tensor; `sdpa` is torch's `scaled_dot_product_attention`, by the
kernel that torch chooses; `sdpa-padded` the same on heads padded with zeros to a multiple of 8 channels, as fused
kernels of GPUs want them; `sdpa-fp32` the same in float32, also where all else is bfloat16."""
RunMode = Literal["eager", "compiled", "cuda-graph"]
"""How torch runs a network: as it is, by `torch.compile`, or as a CUDA graph that is recorded once and replayed."""
Pooling = Literal["mean", "sequence", "flatten"]
Rule = Literal["softmax", "logits", "majority"]
"""What a committee sums: softmax outputs, logits, or votes."""
Probability = Annotated[float, Field(ge=0, le=1)]
DropRate = Annotated[float, Field(ge=0, lt=1)]


DATA_DEFINED = ("img_size", "in_channels", "num_classes")
"""Fields of `ModelConfig` that follow from the data set, which has attributes of the same names."""


class Config(BaseModel):
    """Base of all settings: immutable, strict about types, closed to unknown keys, finite numbers only."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, as a validator; raises ValueError if one appears twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"values must be distinct, but got {list(values)}")
    return values


class ModelConfig(Config):
    """Architecture of one CCT; the defaults are CCT-7/3x1 as published (Hassani et al., arXiv:2104.05704).

    Notation used throughout `lsmha.models`: B images, N tokens, D = embed_dim, H = num_heads, d = head_dim = D / H.
    """

    img_size: int = Field(32, ge=4, le=1024)
    """Height and width of the input images, in pixels."""
    in_channels: int = Field(3, ge=1, le=16)
    """Channels of the input images."""
    num_classes: int = Field(100, ge=2)
    """Number of labels."""
    embed_dim: int = Field(256, ge=1)
    """Width of the token stream."""
    depth: int = Field(7, ge=1, le=64)
    """Number of blocks, convolutional ones included."""
    num_heads: int = Field(4, ge=1)
    """Attention heads per transformer block; divides embed_dim."""
    mlp_ratio: float = Field(2.0, gt=0, le=16)
    """Hidden width of the MLP over embed_dim."""
    kernel_size: int = Field(3, ge=1, le=15)
    """Kernel of the tokenizer's convolutions; odd. Stride max(1, kernel_size // 2 - 1), as published."""
    num_tokenizer_convs: int = Field(1, ge=1, le=4)
    """Convolutions in the tokenizer; a 3x3/2 max-pool follows each one."""
    tokenizer_dim: int = Field(64, ge=1)
    """Channels of the tokenizer's convolutions before the last, which has embed_dim."""
    positional_embedding: Literal["learnable", "sine", "none"] = "learnable"
    """Added to the tokens in front of the first transformer block."""
    num_conv_blocks: int = Field(0, ge=0)
    """How many of the first blocks are convolutional; at most depth, and depth makes a plain CNN."""
    conv_kind: Literal["conv3x3", "residual", "depthwise"] = "conv3x3"
    """Convolutional block: 3x3 conv + batch norm + ReLU; the same on a residual branch; or depthwise-separable."""
    drop_path: DropRate = 0.1
    """Stochastic depth of the last block; grows linearly from 0 at the first."""
    attn_drop: DropRate = 0.1
    """Dropout on the attention weights."""
    attention: AttentionKernel | Literal["auto"] = "auto"
    """Attention kernel. `auto` takes what a short measurement finds fastest on the device, for training and for
    inference, and records it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide embed_dim, but got num_heads={self.num_heads}, embed_dim={self.embed_dim}"
            )
        if self.num_conv_blocks > self.depth:
            raise ValueError(
                "num_conv_blocks <= depth must hold, but got "
                f"num_conv_blocks={self.num_conv_blocks}, depth={self.depth}"
            )
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, but got kernel_size={self.kernel_size}")
        if self.mlp_dim < 1:
            raise ValueError(
                f"mlp_ratio * embed_dim >= 1 must hold, but got mlp_ratio={self.mlp_ratio}, embed_dim={self.embed_dim}"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.num_heads

    @property
    def has_attention(self) -> bool:
        """Whether there is a transformer block: without one it is a plain CNN."""
        return self.num_conv_blocks < self.depth

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the MLP."""
        return int(round(self.embed_dim * self.mlp_ratio, 6))  # rounded first: 100 * 0.29 is 28.999999999999996

    @property
    def conv_channels(self) -> list[int]:
        """Channels before and after each convolution of the tokenizer."""
        return [self.in_channels, *[self.tokenizer_dim] * (self.num_tokenizer_convs - 1), self.embed_dim]

    @property
    def conv_stride(self) -> int:
        """Stride of the tokenizer's convolutions, as published."""
        return max(1, self.kernel_size // 2 - 1)

    @property
    def conv_padding(self) -> int:
        """Padding of the tokenizer's convolutions, as published."""
        return max(1, self.kernel_size // 2)

    @property
    def conv_sides(self) -> list[int]:
        """Side of the grid after each convolution of the tokenizer; the pooling that follows halves it, rounded up."""
        side, sides = self.img_size, []
        for _ in range(self.num_tokenizer_convs):
            sides.append((side + 2 * self.conv_padding - self.kernel_size) // self.conv_stride + 1)
            side = -(-sides[-1] // 2)
        return sides

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the image after the tokenizer."""
        return -(-self.conv_sides[-1] // 2)

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return self.grid_size**2

    @staticmethod
    def inactive_fields(values: Mapping[str, Any]) -> dict[str, Any]:
        """Fields that have no effect on the network that `values` describe, with the value that stands for "none".

        Without conv blocks, conv_kind; without transformer blocks, all that configures attention and MLP; with one
        tokenizer convolution, tokenizer_dim. `values` holds at least depth, num_conv_blocks, conv_kind and
        num_tokenizer_convs.
        """
        defaults = {name: field.default for name, field in ModelConfig.model_fields.items()}
        names: list[str] = []
        neutral: dict[str, Any] = {}
        if values["num_conv_blocks"] == 0:
            names += ["conv_kind"]
        if values["num_conv_blocks"] == values["depth"]:
            names += ["mlp_ratio", "attn_drop", "attention", "positional_embedding"]
            if values["conv_kind"] != "residual":
                names += ["drop_path"]
            neutral["num_heads"] = 1  # the default need not divide embed_dim
        if values["num_tokenizer_convs"] == 1:
            names += ["tokenizer_dim"]
        return neutral | {name: defaults[name] for name in names}

    def canonical(self) -> Self:
        """The same network with every field that has no effect at its neutral value, so that equals compare equal."""
        return self.model_copy(update=self.inactive_fields(self.model_dump()))


class DataConfig(Config):
    """Images, labels and how the training images are split."""

    name: Literal["digits", "cifar10", "cifar100", "flowers102", "imagefolder", "parquet", "webdataset"] = "digits"
    """Data set. `digits` ships with scikit-learn; `imagefolder`, `parquet` and `webdataset` need `path`."""
    path: str | None = None
    """Folder of the data set: the download folder (torchvision sets; default `~/.cache/lsmha-sweep/data`), the root
    with `train/` and `test/` folders of one folder per label (`imagefolder`), or the folder or file glob of Parquet
    or tar files with `train` and `test` (or `validation`) in their or their folders' names (`parquet`, `webdataset`),
    which may be on an object store (`s3://`, `gs://`) or on the Hugging Face hub (`hf://datasets/NAME`)."""
    download: bool = True
    """Whether a torchvision set may be downloaded when it is not under `path`."""
    img_size: int | None = Field(None, ge=4, le=1024)
    """Side to which images are resized; by default the set's own size, and 224 where sizes differ."""
    background: Literal["white", "black"] = "white"
    """What transparent images are put on."""
    image_column: str | None = None
    """Column of the encoded images, or of their files' names (`parquet`); kind of file that is the image
    (`webdataset`); found when not given."""
    label_column: str | None = None
    """Column of the labels, integers or words (`parquet`), or field of JSON (`webdataset`); found when not given."""
    val_fraction: float = Field(0.1, gt=0, lt=1)
    """Part of the training images held out, stratified by label, to select on."""
    split_seed: int = Field(0, ge=0)
    """Seed of the validation split (and, for sets without a test set of their own, of that one)."""
    max_train_images: int | None = Field(None, ge=2)
    """Train on this many images only, stratified by label and chosen by `split_seed`."""


class AugmentConfig(Config):
    """Random changes to a training batch, on the training device, with parameters drawn for each image apart."""

    flip: bool = False
    """Mirror half of the images."""
    translate: int = Field(0, ge=0)
    """Shift by up to this many pixels along each axis; the border is filled with zeros."""
    randaugment_ops: int = Field(0, ge=0, le=8)
    """RandAugment operations per image; 0 is off."""
    randaugment_magnitude: int = Field(9, ge=0, le=30)
    """Strength of the RandAugment operations, out of 30."""
    random_erasing: Probability = 0.0
    """Probability of erasing a rectangle of an image."""
    mixup_alpha: float = Field(0.0, ge=0)
    """Beta parameter of mixup; 0 is off. With cutmix too, each batch gets one of both."""
    cutmix_alpha: float = Field(0.0, ge=0)
    """Beta parameter of cutmix; 0 is off."""


class TrainConfig(Config):
    """Recipe of one training run."""

    epochs: int = Field(10, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(128, ge=1)
    """Images per optimizer step, over all ranks; the last partial batch of an epoch is dropped."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled (adamw) or L2 (sgd) decay of weight matrices and kernels; biases, norms and embeddings have none."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Nesterov momentum of sgd."""
    warmup_epochs: float = Field(1.0, ge=0)
    """Linear warm-up from 0, counted within `epochs`."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate at the end of the cosine over its peak."""
    label_smoothing: DropRate = 0.0
    """Mass of the target spread over all labels."""
    grad_clip_norm: float | None = Field(None, gt=0)
    """Clip the global gradient norm to this; off by default."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Evaluate and save an exponential moving average of the weights; off by default."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast to bfloat16 or not; `auto` does where the device has bfloat16 arithmetic."""
    mode: RunMode = "eager"
    """How torch runs forward and backward pass: as they are, by `torch.compile` (up to a minute for each architecture),
    or as a replayed CUDA graph (GPU only). DDP runs, and seeds trained together, are always eager."""
    seed: int = Field(0, ge=0)
    """Seed of the initial weights, the data order, dropout and augmentation."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the training images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs <= epochs must hold, but got warmup_epochs={self.warmup_epochs}, epochs={self.epochs}"
            )
        return self


class LatencyConfig(Config):
    """How inference latency is measured."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1, strict=False)
    """Batch sizes to time; `latency_ms` of a trial is that of the first one."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Data type of weights and images."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to time on; `auto` is the device that trials train on."""
    device_name: str | None = None
    """Maker's name of the device, such as "NVIDIA A10G", for clusters with several kinds: only such ones are measured
    on. By default the kind that the run's first measurement came from."""
    mode: RunMode = "eager"
    """How torch runs a network: as it is, by `torch.compile` (some 20 s for each, once), or as a replayed CUDA graph
    (GPU only), as servers do."""
    threads: int = Field(1, ge=1)
    """CPU threads (CPU only)."""
    measure_first: int = Field(64, ge=0)
    """A search among so many architectures at most measures all of them before its first trial trains; among more of
    them, those of each batch of suggestions before that batch trains."""
    rounds: int = Field(5, ge=1)
    """Networks on the front are measured again, all of them in so many rounds, each time in a fresh process; 1 is to
    leave it at the measurement of the search."""
    warmup_s: float = Field(0.2, ge=0)
    """Seconds of untimed iterations (at least 3 are made)."""
    min_iterations: int = Field(30, ge=3)
    """Fewest timed iterations."""
    max_seconds: float = Field(1.0, gt=0)
    """Time budget per batch size, in each process, once `min_iterations` are done."""
    search_seconds: float = Field(1.0, gt=0)
    """At most that in the search, where `rounds` come later: nothing trains meanwhile."""
    target_spread: float = Field(0.03, gt=0)
    """Stop once the interquartile range is below this part of the median."""

    def of_search(self) -> LatencyConfig:
        """How the search measures: in less time, if what comes to the front is measured again."""
        if self.rounds == 1:
            return self
        return self.model_copy(update={"max_seconds": min(self.max_seconds, self.search_seconds)})


class ReadoutConfig(Config):
    """How the linear read-out of a frozen block is trained."""

    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    """`lbfgs` solves the convex problem on pooled features that were computed once: deterministic, and fast. `sgd` is
    the recipe published with arXiv:2501.12880, through the network on augmented images, with the settings below."""
    pooling: Pooling = "mean"
    """How tokens become features: their mean, their average by learnt weights (`sequence`, with `sgd` only, since that
    problem is not convex), or all of them side by side (`flatten`)."""
    weight_decay: float = Field(1e-3, ge=0)
    """L2 penalty: the loss has weight_decay / 2 times the sum of squared weights. Of both solvers."""
    max_train_images: int | None = Field(None, ge=2)
    """Train on this many images only, stratified by label; all by default. Of both solvers."""
    max_iterations: int = Field(500, ge=1)
    """Iterations of `lbfgs` at most."""
    epochs: int = Field(200, ge=1)
    """Epochs of `sgd`."""
    batch_size: int = Field(100, ge=1)
    """Images per step of `sgd`."""
    learning_rate: float = Field(0.01, gt=0)
    """Learning rate of the first epoch of `sgd`."""
    lr_decay: float = Field(0.975, gt=0, le=1)
    """Factor on the learning rate of `sgd` after each epoch."""
    momentum: float = Field(0.975, ge=0, lt=1)
    """Nesterov momentum of `sgd`."""
    augment: AugmentConfig = AugmentConfig(flip=True, translate=4)
    """Augmentation of the images that `sgd` sees."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.solver == "lbfgs" and self.pooling == "sequence":
            raise ValueError("pooling must be mean or flatten for solver lbfgs, but got pooling='sequence'")
        if self.augment.mixup_alpha or self.augment.cutmix_alpha:
            raise ValueError("augment must not mix images (mixup_alpha=0, cutmix_alpha=0) for a read-out")
        return self


class AnalysisConfig(Config):
    """What is read out of a trained network, and how its fields are judged."""

    taps: tuple[Literal["attn", "mlp", "block"], ...] = Field(("attn",), min_length=1, strict=False)
    """Where transformer blocks are read: head outputs before the projection (`attn`), hidden nodes of the MLP (`mlp`),
    the block's output (`block`). Conv blocks are always read at their output."""
    readout: ReadoutConfig = ReadoutConfig()
    """How read-outs are trained."""
    pooling_weights: Literal["shared", "silenced"] = "shared"
    """Pooling weights under a single head: those of all heads (`shared`: the fields of the heads add up to the logits),
    or computed anew from that head alone (`silenced`). They differ with sequence pooling only."""
    threshold: float = Field(0.3, ge=0, lt=1)
    """An element of a field matrix above this part of the matrix's maximum counts as one."""
    permutations: int = Field(1000, ge=1)
    """Label permutations behind the null distribution of the overlap between heads."""
    seed: int = Field(0, ge=0)
    """Seed of initial read-out weights, of their data order, and of the permutations."""

    _distinct = field_validator("taps")(distinct)


class PruningConfig(Config):
    """How trained networks are pruned by their fields, and trained again."""

    methods: tuple[Literal["afcc", "andc"], ...] = Field(("afcc", "andc"), min_length=1, strict=False)
    """`afcc` prunes between conv blocks (and the classifier of a plain CNN), `andc` transformer blocks; a network
    without such connections is left out."""
    thresholds: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field((0.3, 0.5, 0.7), min_length=1, strict=False)
    """Thresholds on the fields: higher ones leave units fewer labels, and networks fewer weights."""
    epochs: int = Field(3, ge=1)
    """Epochs of retraining with the mask held at every step; the unpruned network is trained on as long."""
    learning_rate_ratio: float = Field(0.1, gt=0)
    """Peak learning rate of retraining over that of training."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, strict=False)
    """One retraining and one random control for each seed."""
    readout: ReadoutConfig = ReadoutConfig()
    """How the read-outs behind the fields are trained."""

    _distinct = field_validator("methods", "thresholds", "seeds")(distinct)
