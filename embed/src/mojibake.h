// Texts that were read in a wrong encoding ("schÃ¶n" for "schön"), found as `ftfy` finds them. What they were is not guessed.
#pragma once

#include <string>

namespace musiclm {

// Throws Error(ML_BAD_ARGUMENT) for a line that `ftfy.fix_encoding` changes, and for a few that it leaves alone.
void refuse_mojibake(const std::u32string& line);

}  // namespace musiclm
