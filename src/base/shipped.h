/* Files that nibble ships: configs/ of the source; beside the program in a release folder; PREFIX/share/nibble once
 * installed. */
#ifndef NB_BASE_SHIPPED_H
#define NB_BASE_SHIPPED_H

#include "base/status.h"

/* The path of file NAME + extension in the folder `kind` ("devices", "rtx-4090", ".yml"); the caller frees *path. A name
 * with a slash or with the extension is a path of the user's own and comes back as it is. Searched: FOLDER/configs/KIND
 * and FOLDER/share/nibble/KIND for the program's own folder and those above it, the nearest first; then where this build
 * is installed to. Errors: NB_USAGE naming what there is and the nearest to it; NB_MEMORY. */
nb_status nb_shipped_file(const char *kind, const char *name, const char *extension, char **path);

#endif
