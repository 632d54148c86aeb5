// What every part of the library throws; `api.cpp` turns it into a status and a message, and nothing else crosses the border.
#pragma once

#include <stdexcept>
#include <string>

#include "musiclm.h"

namespace musiclm {

struct Error : std::runtime_error {
  Error(ml_status status, const std::string& message) : std::runtime_error(message), status(status) {}
  ml_status status;
};

}  // namespace musiclm
