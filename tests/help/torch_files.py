"""Files of PyTorch for tests/unit/torchbin.c: `make DIR` writes them with torch.save, `check DIR` opens what the C
writer made. Exits 77 where torch is not installed."""
import collections
import os
import pickle
import sys

try:
    import torch
except ImportError:
    sys.exit(77)


class Evil:
    def __init__(self, f, *args):
        self.f, self.args = f, args

    def __reduce__(self):
        return self.f, self.args


def make(d):
    torch.manual_seed(0)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    types = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8,
             torch.int8, torch.int16, torch.bool]
    sd = collections.OrderedDict((str(t)[6:], (base % 7).to(t)) for t in types)
    torch.save(sd, f"{d}/types.bin")
    shared = torch.arange(10, dtype=torch.float32)
    torch.save({"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "all": shared, "part": shared[3:7],
                "t": base.t(), "col": base[:, 2], "rows": base[1:3], "param": torch.nn.Parameter(torch.ones(2)),
                "conv": torch.arange(24, dtype=torch.float32).reshape(1, 2, 3, 4).permute(0, 2, 3, 1)}, f"{d}/views.bin")
    torch.save({"epoch": 3, "lr": 1e-3, "name": "x", "none": None, "flags": [True, False], "big": 1 << 40, "neg": -5,
                "size": base.size(), "state": {"w": base, "inner": {0: base[0].clone(), "l": [base[1].clone()]}},
                "tuple": (1, base[2].clone())}, f"{d}/nested.pt")
    torch.save(torch.nn.Linear(3, 2).state_dict(), f"{d}/module.pth")  # has _metadata, set by BUILD
    torch.save(base, f"{d}/bare.pt")
    torch.save(sd, f"{d}/proto4.bin", pickle_protocol=4)
    torch.save(sd, f"{d}/legacy.bin", _use_new_zipfile_serialization=False)
    torch.save({"a": base.to(torch.complex64)}, f"{d}/complex.bin")
    torch.save({"a": torch.zeros(1).expand(1000)}, f"{d}/expand.bin")
    torch.save({"a": torch.zeros(1, 1, 1, 1, 1)}, f"{d}/five.bin")
    torch.save({"a": base, "b": Evil(os.system, "touch " + d + "/executed")}, f"{d}/system.bin")
    torch.save({"a": base, "b": Evil(eval, "1")}, f"{d}/eval.bin")
    torch.save({"a": torch.nn.Linear(2, 2)}, f"{d}/class.bin")
    import zipfile
    with zipfile.ZipFile(f"{d}/types.bin") as z, zipfile.ZipFile(f"{d}/deflated.bin", "w", zipfile.ZIP_DEFLATED) as o:
        for i in z.infolist():
            o.writestr(i.filename, z.read(i))
    with zipfile.ZipFile(f"{d}/other.zip", "w") as o:
        o.writestr("hello.txt", "hi")
    with zipfile.ZipFile(f"{d}/big.bin", "w") as o:
        for n in ("data.pkl", "byteorder"):
            o.writestr(f"big/{n}", pickle.dumps({}, 2) if n == "data.pkl" else "big")


def check(d):
    import zipfile
    try:
        sd = torch.load(f"{d}/ours.bin", weights_only=True)
    except TypeError:  # a torch without weights_only
        sd = torch.load(f"{d}/ours.bin")
    assert isinstance(sd, collections.OrderedDict) and list(sd) == ["a.weight", "b", "c", "\u00e9"], list(sd)
    assert sd["a.weight"].dtype == torch.float16 and sd["a.weight"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert sd["b"].dtype == torch.int64 and sd["b"].tolist() == [-1]
    assert sd["c"].dtype == torch.bfloat16 and sd["c"].shape == (2, 1, 1, 2) and sd["c"].sum() == 10
    assert sd["\u00e9"].shape == (0, 4) and sd["a.weight"].is_contiguous()
    with zipfile.ZipFile(f"{d}/ours.bin") as z:
        assert z.testzip() is None
        assert z.read("archive/version") == b"3\n"


{"make": make, "check": check}[sys.argv[1]](sys.argv[2])
