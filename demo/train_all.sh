#!/bin/sh
# The whole training on two cores, each stage on from where it was stopped: sh demo/train_all.sh CLIPS RUNS
# Two stages at a time with a thread each: two threads in one stage wait for each other whenever something else runs on the machine.
set -eu
clips=$1 runs=$2
python=${PYTHON:-.venv/bin/python}
mkdir -p "$runs"

stage() { # name, threads
    [ ! -e "$runs/$1.done" ] || return 0
    nice -n 19 "$python" -m demo.train "$1" --clips "$clips" --runs "$runs" --threads "$2" >>"$runs/$1.log" 2>&1 || return 1
    touch "$runs/$1.done"
}

nice -n 19 "$python" -m demo.render "$clips" >>"$runs/render.log" 2>&1
{ stage codec 1 && stage codes 1; } &
sounds=$!
stage mulan 1
stage fit 1
stage tokens 1
stage semantic 1
wait "$sounds"
stage coarse 1 &
coarse=$!
stage fine 1
wait "$coarse"
# Once more the codec's decoder, on codes as these transformers write them.
if [ ! -e "$runs/played.done" ]; then
    first=$runs/first
    nice -n 19 "$python" -m demo.pack "$runs" "$first" >>"$runs/played.log" 2>&1
    nice -n 19 "$python" export_all.py --semantic "$first/semantic.pt" --coarse "$first/coarse.pt" --fine "$first/fine.pt" \
        --codec "$first/codec.pt" --quantizer "$first/quantizer.pt" --config "$first/config.json" \
        --out "$runs/bundle" --overwrite >>"$runs/played.log" 2>&1
fi
stage played 2
stage decoder 1
