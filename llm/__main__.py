"""`python -m llm fetch | pretrain | sweep | colab`: what the course needs done without a notebook."""

import argparse
import sys
from pathlib import Path

from llm import charts, colab, corpora, files, plots, pretrained, sweep
from llm.training import TrainingError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m llm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="fetch and verify the corpora, once; afterwards everything works offline")
    train = commands.add_parser("pretrain", help="train the base from scratch, about an hour on two cores; resumes")
    train.add_argument("--out", type=Path, default=pretrained.ROOT / "build" / "base")
    train.add_argument("--steps", type=int, default=4200)
    train.add_argument("--seed", type=int, default=0)
    many = commands.add_parser("sweep", help="do the recorded sweeps of data/results again, or go on with them")
    many.add_argument("names", nargs="*", help=f"which: {', '.join(sweep.SWEEPS)} (default: all)")
    commands.add_parser(
        "colab", help="write the badge and the first cell of every notebook, from pyproject.toml's address"
    )
    args = parser.parse_args(argv)
    try:
        if args.command == "fetch":
            for name in corpora.sources():
                corpus = corpora.load(name)
                print(f"{name:12} {len(corpus.train):9,} tokens to train on, {len(corpus.heldout):7,} held out")
        elif args.command == "colab":
            changed = colab.write(colab.ROOT / "notebooks")
            print(f"{colab.repository()}: {', '.join(changed) or 'every notebook says so already'}")
        elif args.command == "sweep":
            for name in args.names or sweep.SWEEPS:
                for row in sweep.sweep(name):
                    print(name, "  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
            picture = charts.by_rank(files.read_csv(sweep.RESULTS / "ranks.csv"))
            picture.savefig(sweep.RESULTS / "ranks.png", dpi=100)
        else:
            for row in pretrained.pretrain(args.out, args.steps, args.seed):
                print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
            curve = plots.training_log(files.read_csv(args.out / "log.csv"), list(pretrained.MIXTURE))
            curve.savefig(args.out / "loss.png", dpi=100)
    except (corpora.CorpusError, pretrained.BaseError, TrainingError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
