"""The SpecKV paper (arXiv 2605.02888) held to its own records.

Get `phase2_step_results.csv` and `phase2_experiment_results.csv` from the author's repository
(https://github.com/Amorfati123/SpecKV, MIT), then, from the repository root:

    pip install -e '.[paper]'            # scikit-learn
    python examples/reproduce_paper.py --data FOLDER [--json] [--output FILE]

Prints the published tables by the published procedure; what the same choices earn in tokens per
second by the times of the same records; what the default policy gains there when it sees the last
window only, over the cost of a draft step, and in batches; and where the one-rate formula fails.
Half a minute to a minute. ``--json`` ends with one line of JSON; ``--output`` writes it to a file
with its provenance and a digest of the records. ``--check`` compares with the committed
examples/results/paper.json instead and ends with 1 where a figure is another.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

try:
    from paper import formula, lagged, measured, published
except ModuleNotFoundError as error:
    if error.name != "sklearn":
        raise
    sys.exit("reproduce_paper: needs scikit-learn; run: pip install -e '.[paper]'")
from paper.records import COMPRESSIONS, RUNS, STEPS, DataError, Records, load

from sglang_speckv.files import write_atomically
from sglang_speckv.provenance import provenance

COST_RATIOS = ("0.03", "0.10", "0.12", "0.25", "0.29", "0.52")
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
COMMITTED = Path(__file__).parent / "results" / "paper.json"


def published_tables(records: Records, found: published.Published) -> dict[str, Any]:
    compression, task = records.compression[found.test], records.task[found.test]
    policy, fixed4, fixed8 = found.policy, found.fixed(4), found.fixed(8)
    print("Published tables: predicted tokens per step on the test rows, scored by the predictor")
    print(
        f"  predictor on rows that it was not fitted on: correlation {found.correlation:.3f},",
        end="",
    )
    print(f" squared error {found.squared_error:.4f} (published .685, .0896)")
    print(f"  {'':22}{'paper':>8}{'gamma 4':>9}{'gamma 8':>9}")
    rows = [("all (5.82, 3.73)", policy == policy)]
    rows += [(name, compression == name) for name in COMPRESSIONS]
    rows += [
        (f"{name} {kind}", (compression == name) & (task == kind))
        for name in COMPRESSIONS
        for kind in dict.fromkeys(task.tolist())
    ]
    for name, mask in rows:
        means = policy[mask].mean(), fixed4[mask].mean(), fixed8[mask].mean()
        print(f"  {name:22}{means[0]:8.2f}{means[1]:9.2f}{means[2]:9.2f}")
    print(
        f"  the policy takes gamma 8 in {found.share_gamma8:.1%} of the steps; always 8 scores",
        end="",
    )
    print(f" {fixed8.mean():.2f}")
    ranked = sorted(found.importances.items(), key=lambda item: -item[1])
    print("  random forest importances: " + ", ".join(f"{k} {v:.0%}" for k, v in ranked) + "\n")
    return {
        "paper": round(float(policy.mean()), 2),
        "fixed4": round(float(fixed4.mean()), 2),
        "fixed8": round(float(fixed8.mean()), 2),
    }


def throughput_truth(records: Records, found: published.Published) -> dict[str, float]:
    print(
        "Measured tokens per second of the same runs, and of the paper's choices (matched replay)"
    )
    print(f"  {'':6}{'g=2':>7}{'g=4':>7}{'g=6':>7}{'g=8':>7}{'paper':>8}", end="")
    print(f"{'vs g=4':>9}{'vs best':>9}{'c':>7}   step time")
    versus_best = {}
    for name in COMPRESSIONS:
        m = measured.measure(records, name, found.choice)
        versus_best[name] = round(m.versus(m.best), 1)
        rates = "".join(f"{rate:7.1f}" for rate in m.tok_per_s.values())
        print(f"  {name:6}{rates}{m.policy_tok_per_s:8.1f}{m.versus(4):+8.1f}%", end="")
        print(f"{versus_best[name]:+8.1f}%{m.cost_ratio:7.2f}", end="")
        print(f"   {m.fixed_ms:.1f} + {m.draft_ms:.1f} g ms")
    print("  acceptance hardly moves with compression; the cost ratio c does, and the best g too\n")
    return versus_best


def lagged_table(rounds: lagged.Rounds) -> dict[str, float]:
    print("Default policy on the gamma-8 rounds, signals of the window before (depths 1 to 8, one")
    print("request, learned from the other prompts), against the best fixed depth")
    print(f"  {'c':>5}{'best':>6}{'policy':>9}{'clairvoyant':>13}   share of rounds at depths 1..8")
    gains = {}
    for ratio in COST_RATIOS:
        gain = lagged.replay(rounds, float(ratio))
        gains[ratio] = round(gain.policy, 1) + 0.0  # no -0.0
        shares = " ".join(f"{share:.2f}" for share in gain.shares)
        print(
            f"  {ratio:>5}{gain.best:6d}{gain.policy:+8.1f}%{gain.clairvoyant:+12.1f}%   {shares}"
        )
    print()
    return gains


def dilution_table(records: Records) -> dict[str, dict[str, float]]:
    print("The same with one depth for a whole batch, c = 0.25: the content of mixed requests")
    print("averages out, that of phases (one task at a time) does not")
    rounds = lagged.rounds_of(records, lagged.BATCH_FOLDS)
    print("  batch size " + "".join(f"{size:>8}" for size in BATCH_SIZES))
    told = {}
    for name, phased in (("mixed", False), ("phases", True)):
        gains = [lagged.replay_batches(rounds, size, phased).policy for size in BATCH_SIZES]
        print(f"  {name:11}" + "".join(f"{gain:+7.1f}%" for gain in gains))
        told[name] = {str(k): round(v, 1) for k, v in zip(BATCH_SIZES, gains, strict=True)}
    print()
    return told


def formula_table(records: Records) -> dict[str, dict[str, float]]:
    print("Tokens per step by (1 - a^(g+1)) / (1 - a) at an article's rates, and by the records")
    told = {}
    for name, rates in formula.ARTICLE_RATES.items():
        survives = formula.survival(records, name.lower())
        rate = formula.one_rate(survives)
        told[name] = {}
        for gamma, assumed in rates.items():
            told[name][str(gamma)] = round(formula.expected_tokens(assumed, gamma), 2)
            print(f"  {name:5} g={gamma}: {told[name][str(gamma)]:.2f} (a = {assumed});", end="")
            print(
                f" recorded {1 + survives[:gamma].sum():.2f}, at the one rate that fits best",
                end="",
            )
            print(f" ({rate:.2f}) {formula.expected_tokens(rate, gamma):.2f}")
        conditional = survives / [1.0, *survives[:-1]]
        print("        acceptance by position " + " ".join(f"{p:.2f}" for p in conditional))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the two CSV files")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--output", type=Path, help="write the JSON and its provenance here")
    parser.add_argument("--check", action="store_true", help="compare with the committed figures")
    args = parser.parse_args()
    try:
        records = load(args.data)
    except DataError as error:
        print(f"reproduce_paper: {error}", file=sys.stderr)
        sys.exit(2)
    found = published.reproduce(records)
    rounds = lagged.rounds_of(records)
    result = {
        "data": {name: digest(args.data / name) for name in (STEPS, RUNS)},
        "tokens_per_step": published_tables(records, found),
        "share_gamma8": round(found.share_gamma8, 4),
        "tok_per_s_vs_best_static_pct": throughput_truth(records, found),
        "throughput_vs_best_static_pct": lagged_table(rounds),
        "batches_vs_best_static_pct": dilution_table(records),
        "formula": formula_table(records),
    }
    if args.output:
        content = json.dumps({"provenance": provenance(), **result}, indent=1) + "\n"
        write_atomically(args.output, lambda path: path.write_text(content))
    if args.json:
        print(json.dumps(result))
    if args.check:
        check(result)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(result: dict[str, Any]) -> None:
    committed = json.loads(COMMITTED.read_text())
    plain = json.loads(json.dumps(result))  # keys as JSON has them
    moved = [key for key, value in plain.items() if committed.get(key) != value]
    for key in moved:
        print(f"{key}: committed {committed.get(key)}, now {plain[key]}", file=sys.stderr)
    if moved:
        sys.exit(f"reproduce_paper: {', '.join(moved)} moved on; write them with --output")
    print("the committed figures are those of this code and these records")


if __name__ == "__main__":
    main()
