#!/usr/bin/env python3
"""The exact search of an Ocelli index beside usearch (HNSW) and sqlite-vec, on the same vectors.

    python bench/peers/vectors.py --nearest target/release/examples/nearest [--counts 10000,100000] [--dimension 768] [--queries 50]
                                  [--k 10] [--threads N] [--out FILE.jsonl]

`cargo build --release -p ocelli-search --example nearest` builds what times Ocelli.  Vectors are made from a seed: 200 clusters in 64
dimensions, brought to --dimension by a random matrix, with noise, as unit vectors.  Embeddings of pictures lie so, about; vectors that are
random in all directions are all equally far, and worse for graphs.  Queries are others of the same kind.  Of each contender:
seconds to build or to insert, bytes on the disk, milliseconds a query (median; one at a time, --threads at most), and recall: the share
of the true k nearest, by products in f64, that it found.  A query whose time other processes disturbed counts as it is; the share of the
processors that others had is written beside.  What is not installed is named and left out.  Needs Linux and numpy; usearch; sqlite-vec, and
pysqlite3-binary where Python's own sqlite3 loads no extensions.
"""
import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quiet

LAYOUT = """
    CREATE TABLE about (id INTEGER PRIMARY KEY CHECK (id = 0), text TEXT NOT NULL);
    CREATE TABLE vectors (hash BLOB PRIMARY KEY, width INTEGER NOT NULL, height INTEGER NOT NULL, vector BLOB NOT NULL);
    CREATE TABLE pictures (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER, hash BLOB NOT NULL);
    CREATE INDEX pictures_by_hash ON pictures (hash);
    PRAGMA application_id = 0x4f43454c;
    PRAGMA user_version = 1;"""


class Others:
    """The share of the processors' time that other processes took meanwhile."""

    def __enter__(self):
        self.start, self.busy, self.own = time.monotonic(), quiet.busy(), os.times()
        return self

    def __exit__(self, *_):
        busy, own, wall = quiet.busy(), os.times(), time.monotonic() - self.start
        used = sum(getattr(own, name) - getattr(self.own, name) for name in ("user", "system", "children_user", "children_system"))
        foreign = busy[0] - self.busy[0] - used + busy[1] - self.busy[1]
        self.share = round(max(0.0, foreign) / (max(wall, 1e-9) * os.cpu_count()), 3)


def vectors(rng, count, dimension, centers, basis):
    """Unit vectors of the clusters, f32."""
    latent = centers[rng.integers(len(centers), size=count)] + rng.normal(size=(count, centers.shape[1]), scale=0.6)
    rows = (latent @ basis + rng.normal(size=(count, dimension), scale=0.3)).astype(np.float32)
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True).astype(np.float32)


def recall(found, truth):
    return sum(len(set(a) & set(b)) for a, b in zip(found, truth)) / sum(len(row) for row in truth)


def each(queries, ask):
    """Milliseconds of each query, and what was found."""
    times, found = [], []
    for query in queries:
        start = time.perf_counter()
        hits = ask(query)
        times.append((time.perf_counter() - start) * 1e3)
        found.append(list(hits))
    return times, found


def row(name, times, found, truth, **more):
    return {"name": name, "query_ms": round(statistics.median(times), 3), "recall": round(recall(found, truth), 4), **more}


def ocelli(args, folder, data, queries, truth):
    path, asked = folder / "index.idx", folder / "queries.f32"
    about = {"model": "made", "model_hash": "0" * 64, "family": "siglip", "kind": "dual_encoder", "dimension": data.shape[1],
             "processor": [], "root": str(folder)}
    start = time.perf_counter()
    db = sqlite3.connect(path)
    db.executescript(LAYOUT)
    with db:
        db.execute("INSERT INTO about VALUES (0, ?)", [json.dumps(about)])
        db.executemany("INSERT INTO vectors VALUES (?, 1, 1, ?)",
                       ((number.to_bytes(32, "big"), vector.tobytes()) for number, vector in enumerate(data)))
        db.executemany("INSERT INTO pictures VALUES (?, 0, 0, ?)",
                       ((f"{number:09}", number.to_bytes(32, "big")) for number in range(len(data))))
    db.close()
    built = time.perf_counter() - start
    asked.write_bytes(queries.tobytes())
    with Others() as others:
        done = subprocess.run([args.nearest, path, asked, str(args.k), str(args.threads), "1"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return [row("ocelli, exact", found["ms"], found["hits"], truth, build_s=round(built, 2), load_s=round(found["load_s"], 3),
                bytes=path.stat().st_size, foreign=others.share)]


def usearch(args, folder, data, queries, truth):
    from usearch.index import Index
    index = Index(ndim=data.shape[1], metric="ip", dtype="f32")
    with Others() as building:
        start = time.perf_counter()
        index.add(np.arange(len(data)), data, threads=args.threads)
        built = time.perf_counter() - start
    path = folder / "usearch.bin"
    index.save(str(path))
    rows = []
    for expansion in (64, 512):
        index.expansion_search = expansion
        with Others() as others:
            times, found = each(queries, lambda query: (int(key) for key in index.search(query, args.k).keys))
        rows.append(row(f"usearch, HNSW, f32, expansion {expansion}", times, found, truth, build_s=round(built, 2),
                        build_foreign=building.share, bytes=path.stat().st_size, foreign=others.share))
    return rows


def sqlite_vec(args, folder, data, queries, truth):
    import sqlite_vec as extension
    sqlite = sqlite3
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        import pysqlite3 as sqlite  # Python may be built without extensions of SQLite.
    path = folder / "vec.db"
    db = sqlite.connect(path)
    db.enable_load_extension(True)
    extension.load(db)
    db.enable_load_extension(False)
    with Others() as building:
        start = time.perf_counter()
        with db:
            db.execute(f"CREATE VIRTUAL TABLE vectors USING vec0(vector float[{data.shape[1]}] distance_metric=cosine)")
            db.executemany("INSERT INTO vectors(rowid, vector) VALUES (?, ?)",
                           ((number, vector.tobytes()) for number, vector in enumerate(data)))
        built = time.perf_counter() - start
    ask = "SELECT rowid FROM vectors WHERE vector MATCH ? AND k = ? ORDER BY distance"
    with Others() as others:
        times, found = each(queries, lambda query: (number for number, in db.execute(ask, [query.tobytes(), args.k]).fetchall()))
    db.close()
    return [row("sqlite-vec, exact", times, found, truth, build_s=round(built, 2), build_foreign=building.share,
                bytes=path.stat().st_size, foreign=others.share)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nearest", type=Path, required=True)
    parser.add_argument("--counts", default="10000,100000")
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    versions = {"numpy": np.__version__}
    for count in map(int, args.counts.split(",")):
        rng = np.random.default_rng(count)
        centers, basis = rng.normal(size=(200, 64)), rng.normal(size=(64, args.dimension)) / 8
        data = vectors(rng, count, args.dimension, centers, basis)
        queries = vectors(rng, args.queries, args.dimension, centers, basis)
        scores = queries.astype(np.float64) @ data.T.astype(np.float64)
        truth = [list(map(int, np.argsort(-of, kind="stable")[: args.k])) for of in scores]
        del scores
        rows = []
        for name, contender in (("ocelli", ocelli), ("usearch", usearch), ("sqlite_vec", sqlite_vec)):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    rows += contender(args, Path(folder), data, queries, truth)
            except ImportError as error:
                print(f"left out: {name}: {error}", file=sys.stderr)
                continue
            if name != "ocelli":
                versions[name] = getattr(sys.modules[name], "__version__", "unknown")
        for one in rows:
            print(f"{count:>7} {one['name']:<36} {one['query_ms']:9.3f} ms  recall {one['recall']:.4f}  built in {one['build_s']} s, "
                  f"{one['bytes'] / 1e6:.0f} MB, others had {one['foreign']:.0%}")
        if args.out:
            report = {"schema": "ocelli.peers.vectors.v1", "cpu": quiet.cpu(), "threads": args.threads, "count": count,
                      "dimension": args.dimension, "queries": args.queries, "k": args.k, "versions": versions, "rows": rows}
            with args.out.open("a") as file:
                file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
