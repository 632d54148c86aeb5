// What Python's `ftfy.fix_text` does to a text before it is read: entities, quotes, widths, ligatures, line ends, controls, NFC.
//
// ftfy also guesses which encoding a broken text was read in, and reads it again ("schÃ¶n" becomes "schön"). Nothing is guessed here: what
// ftfy would read again is refused.
#pragma once

#include <string>

namespace musiclm {

// Throws Error(ML_BAD_ARGUMENT) for a text that ftfy might repair by guessing, or that is longer than what it looks at at once.
std::u32string repair_text(const std::u32string&);

}  // namespace musiclm
