"""Specs and weights on disk: one trace serves many models, and files are merged without being read whole."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import rebasin
from rebasin import Permutation, PermutationSpec, SpecError, load_weights, save_weights


class Heads(nn.Module):
    """Convolutions in groups, attention with heads, flattening and tied embeddings: all that a spec can say."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.mix, self.norm = nn.Conv1d(8, 8, 3, padding=1, groups=2), nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 12, bias=False)
        self.out.weight = self.table.weight
        self.pool = nn.Linear(8 * 5, 3)

    def forward(self, tokens):
        x = self.table(tokens)
        x = x + self.norm(self.mix(x.mT)).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.out(x), self.pool(x.flatten(1))


@pytest.fixture(scope="module")
def heads():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Heads().eval()
    return model, rebasin.trace(model, torch.randint(12, (2, 5)))


def test_a_spec_comes_back_from_its_file_whole(heads, tmp_path):
    _, spec = heads
    spec.save(tmp_path / "spec.json")
    loaded = PermutationSpec.load(tmp_path / "spec.json")
    assert loaded == spec and hash(loaded) == hash(spec)
    assert (loaded.proof, loaded.ties, loaded.summary()) == (spec.proof, spec.ties, spec.summary())
    assert spec.inside and spec.blocks and spec.ties == (("table.weight", "out.weight"),)
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"], "nothing unfinished is left"


def test_places_without_a_rule_are_kept_one_by_one(tmp_path):
    positions = torch.tensor([[0, 5], [3, 1], [4, 2]])
    parts = {"w": (rebasin.spec.Part("g", 0, positions),)}
    PermutationSpec({"g": 3}, parts, {"w": (6,)}).save(tmp_path / "spec.json")
    assert torch.equal(PermutationSpec.load(tmp_path / "spec.json").parts["w"][0].positions, positions)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda text: text[:40], ValueError, "is no spec that save wrote"),
        (lambda text: "[1, 2]", ValueError, "does not name the format"),
        (lambda text: "{}", ValueError, "does not name the format"),
        (lambda text: text.replace('"version": 1', '"version": 2'), ValueError, "has version 2 .* reads 1"),
        (lambda text: text.replace('"shapes"', '"shape"'), ValueError, "is a damaged spec: KeyError"),
        (lambda text: text.replace('"first"', '"begin"'), ValueError, "is a damaged spec: KeyError"),
        (lambda text: text.replace('"axis": 0', '"axis": 9'), SpecError, "and group 'mix' is said to lie on 9"),
        (lambda text: text.replace('"first": 0', '"first": 900'), SpecError, "has no slice"),
    ],
)
def test_a_file_that_is_no_spec_is_named(heads, tmp_path, change, error, said):
    path = tmp_path / "spec.json"
    heads[1].save(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(error, match=said):
        PermutationSpec.load(path)


def test_a_spec_without_a_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        PermutationSpec.load(tmp_path / "none.json")


def test_two_files_are_merged_as_their_models_are(heads, tmp_path):
    a, spec = heads
    with torch.random.fork_rng():
        torch.manual_seed(1)
        b = Heads().eval()
    for name, model in (("a", a), ("b", b)):
        save_weights(model, tmp_path / f"{name}.safetensors")
    of_files = [load_weights(tmp_path / f"{name}.safetensors", spec) for name in "ab"]
    merged = rebasin.merge(spec, of_files).weights
    for key, tensor in rebasin.merge(spec, [a, b]).model.state_dict().items():
        assert torch.equal(merged[key], tensor), key
    save_weights(merged, tmp_path / "merged.safetensors")
    a_like = Heads()
    a_like.load_state_dict(load_weights(tmp_path / "merged.safetensors"))
    assert torch.equal(a_like.pool.weight, merged["pool.weight"])


def test_a_tied_entry_that_a_file_leaves_out_is_found_under_its_other_name(heads, tmp_path):
    model, spec = heads
    state = {key: tensor for key, tensor in model.state_dict().items() if key != "out.weight"}
    save_weights(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="the spec has 'out.weight', the weights have not"):
        Permutation.identity(spec).apply(load_weights(tmp_path / "model.safetensors"))
    loaded = load_weights(tmp_path / "model.safetensors", spec)
    assert torch.equal(Permutation.identity(spec).apply(loaded)["out.weight"], model.out.weight)


def test_weights_in_several_files_are_found_by_their_index(tmp_path):
    state = nn.Linear(3, 2).state_dict()
    for key in state:
        save_weights({key: state[key]}, tmp_path / f"{key}.safetensors")
    index = {"weight_map": {key: f"{key}.safetensors" for key in state}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    loaded = load_weights(path)
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no index of safetensors files"):
        load_weights(path)


def test_what_are_no_weights_on_disk_is_named(tmp_path, monkeypatch):
    (tmp_path / "text.safetensors").write_text("weights")
    with pytest.raises(ValueError, match=r"text.safetensors is no file of safetensors"):
        load_weights(tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(TypeError, match="a module, a dict of tensors"):
        save_weights([1, 2], tmp_path / "list.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        save_weights({"w": torch.ones(2)}, tmp_path / "w.safetensors")


MEASURED = """
import re, sys
from pathlib import Path
import torch
import rebasin

def own_memory():  # in MiB, without what is mapped from files
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

spec = rebasin.PermutationSpec.load("spec.json")
before = own_memory()
a, b = (rebasin.load_weights(f"{name}.safetensors", spec) for name in "ab")
for tensor in (*a.values(), *b.values()):
    tensor.sum()
print(own_memory() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is told by /proc")
def test_files_are_mapped_and_take_no_memory_of_their_own(tmp_path):
    model = nn.Sequential(nn.Linear(64, 16384), nn.ReLU(), nn.Linear(16384, 64))
    megabytes = sum(parameter.nbytes for parameter in model.parameters()) / 2**20
    rebasin.trace(model, torch.ones(1, 64)).save(tmp_path / "spec.json")
    for name in "ab":
        save_weights(model, tmp_path / f"{name}.safetensors")
    done = subprocess.run([sys.executable, "-c", MEASURED], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(done.stdout) < megabytes / 2, "two models were loaded"
