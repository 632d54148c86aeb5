// HTML's names and numbers of characters, such as "&eacute;", "&#233;" and "&#xE9;", in texts.
#pragma once

#include <string>

namespace musiclm {

// Python's html.unescape: as a browser reads them, a missing semicolon included. Throws Error(ML_BAD_ARGUMENT) where Python gives up.
std::u32string unescape_html(const std::u32string&);

// ftfy's, which is careful: only with the semicolon, and also some names in capitals.
std::u32string unescape_complete_html(const std::u32string&);

}  // namespace musiclm
