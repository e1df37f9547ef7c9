# %% [markdown]
# # A sweep from a notebook
#
# The cells of this script open as a notebook in Jupyter (by jupytext) and VS Code; `python
# examples/sweep_from_a_notebook.py` runs them all, within a minute or two on two CPU cores. They search small networks
# for scikit-learn's handwritten digits, and write to `runs/notebook`. Run again, they go on from what is there.

# %%
import torch

import lsmha
from orchestrator import load_run, run_sweep

# %% [markdown]
# ## Search
# The settings are those of a sweep's YAML; `run_sweep("search_spaces/quickstart.yaml", out=...)` works as well. The
# search proposes trials by their validation accuracy and measured latency; the best ones are trained again, with two
# seeds each, and tested once.

# %%
run = run_sweep(
    {
        "name": "notebook",
        "data": {"name": "digits", "val_fraction": 0.2},
        "model": {"embed_dim": 24, "mlp_ratio": 1.0, "num_tokenizer_convs": 1, "drop_path": 0.0, "attn_drop": 0.0},
        "train": {"epochs": 4, "learning_rate": 3e-3, "batch_size": 64},
        "space": {"num_heads": [1, 4, 24], "depth": [2, 3], "num_conv_blocks": [0, 1]},
        "search": {"num_trials": 6},
        "latency": {"batch_sizes": [8], "max_seconds": 0.2, "warmup_s": 0.1, "rounds": 3},
        "finalists": {"max_finalists": 2, "epochs": 8, "seeds": [0, 1]},
    },
    out="runs/notebook",
)
print(run)

# %% [markdown]
# ## What came out
# Every table of the run folder is a data frame: `trials`, `curves`, `front`, `latency`, `finalists`, `analyses`,
# `committees`, `prunings`. A folder of another day opens by `load_run`, also while its sweep is still under way.

# %%
run = load_run("runs/notebook")
print(run.front[["id", "num_heads", "depth", "num_conv_blocks", "val_accuracy", "latency_ms"]].to_string(index=False))

# %%
by_trial = run.finalists.groupby("trial")["test_accuracy"]
print(by_trial.agg(["mean", "std", "count"]).to_string())

# %% [markdown]
# ## A trained network
# Its weights are those that gave the logits in the folder.

# %%
finalist = run.finalists["id"].iloc[0]
network = run.network(finalist)
dataset = lsmha.load_dataset(run.config.data)
tested = lsmha.evaluate(network, dataset.test, dataset, device=torch.device("cpu"))
print(f"{finalist}: {lsmha.model_cost(network.config).params:,} parameters, test accuracy {tested.accuracy:.3f}")

# %% [markdown]
# ## Do the seeds of one network decide better together?
# A soft committee adds the softmax outputs of its members. Its gain over the best of them comes with a 95 % interval.

# %%
ids = run.finalists.loc[run.finalists["trial"] == run.finalists["trial"].iloc[0], "id"]
stored = [run.logits(member) for member in ids]
committee = lsmha.evaluate_committee(torch.stack([member.logits for member in stored]), stored[0].labels)
gain = committee.gain_over_best
print(
    f"{committee.size} members: {committee.accuracy:.3f} together, "
    f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] over the best alone"
)

# %% [markdown]
# ## What do its heads recognize?
# `analyses` has, for each block, how many labels a head recognizes and how little noise it adds; `lsmha.analyze` gives
# the fields themselves.

# %%
heads = run.analyses[run.analyses["unit"] == "head"]
columns = ["id", "block", "num_units", "readout_accuracy", "labels_per_head", "noise", "field_snr"]
print(heads[columns].to_string(index=False) if len(heads) else "no finalist has heads: all are plain CNNs")
