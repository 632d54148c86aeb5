// Prints how many processors a process may keep busy whose files of the system lie below a folder: processors FOLDER.
#include <cstdio>

#include "container.h"

int main(int count, char** arguments) {
  if (count != 2) return 2;
  std::printf("%d\n", musiclm::available_processors(arguments[1]));
}
