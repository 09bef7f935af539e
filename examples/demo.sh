#!/bin/sh
# The demo of the README: train a sweep on real text, fit it, predict. Usage: demo.sh [FOLDER OF THE COMMANDS]
set -eu
[ $# -eq 0 ] || PATH="$1:$PATH"
run() {
    printf '\n$ scalelab %s\n' "$*"
    scalelab "$@"
}
run sweep isoflop --budgets 8e10..8e11:4 --sizes 6 --span 8 --seq-len 64 --batch-seqs 9 --name demo --launcher local --yes
# Exit code 4 means that the runs do not determine the law: an answer, not an error.
run fit --sweep demo --predict N=500K || [ $? -eq 4 ]
run fit --sweep demo --predict C=1e13 --plot results/demo/isoflop.png || [ $? -eq 4 ]
