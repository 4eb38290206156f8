
# Where the package bash-completion is not installed, the words are found here:
# pieces that bash has split at = and : are one word again.
if ! declare -F _get_comp_words_by_ref >/dev/null; then
    __berth_init_completion()
    {
        local rest=${COMP_LINE:0:COMP_POINT} i piece
        words=() cword=-1 prev=
        for ((i = 0; i <= COMP_CWORD; i++)); do
            piece=${COMP_WORDS[i]}
            if [[ $i -eq 0 || $rest == [[:space:]]* ]]; then
                rest=${rest#"${rest%%[![:space:]]*}"}
                words[++cword]=
            fi
            if ((i == COMP_CWORD)); then
                piece=$rest # no further than the cursor
            fi
            words[cword]+=$piece
            rest=${rest#"$piece"}
        done
        cur=${words[cword]}
        if ((cword > 0)); then
            prev=${words[cword - 1]}
        fi
        COMPREPLY=()
    }
fi
