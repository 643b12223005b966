#!/usr/bin/env bash
# Make thin series of the studies that arrive in FOLDER/incoming, and send them to the archive:
#
#     bash process.sh FOLDER COMMAND...    # COMMAND sends the folders that are appended to it
#
# FOLDER/incoming/STUDY holds what was received, FOLDER/thin/STUDY the results, manifest.jsonl and
# the marks "begun" and "sent" or "failed". Remove FOLDER/thin/STUDY to have a study done again.
#
# QUIET     seconds without a new file after which a study is complete (default: 60)
# PREDICT   the command that makes thin series (default: mpunet predict --quiet)
set -u
shopt -s nullglob
folder=$1
shift
quiet=${QUIET:-60}

say() { echo "$(date +%FT%T) $name: $*"; }

while true; do
    for study in "$folder"/incoming/*/; do
        study=${study%/}
        name=${study##*/}
        thin=$folder/thin/$name
        [[ -n $(find "$study" -newermt "-$quiet seconds" -print -quit) ]] && continue
        if [[ -e $thin/begun && -n $(find "$study" -newer "$thin/begun" -print -quit) ]]; then
            say "slices came late, all is made again"
            rm -r "$thin"
        fi
        [[ -e $thin/sent || -e $thin/failed ]] && continue
        mkdir -p "$thin"
        [[ -e $thin/begun ]] || touch "$thin/begun"
        ${PREDICT:-mpunet predict --quiet} "$study" "$thin"
        status=$?
        if ((status == 3)); then
            say "the disk is full, another try follows"
            continue
        fi
        # 1: some series are unsuitable, as the manifest says; the others are sent.
        if ((status > 1)); then
            say "failed with exit status $status"
            touch "$thin/failed"
            continue
        fi
        series=("$thin"/*/)
        if ((${#series[@]})) && ! "$@" "${series[@]}"; then
            say "could not be sent, another try follows"
            continue
        fi
        say "${#series[@]} series sent"
        touch "$thin/sent"
    done
    sleep "$quiet"
done
