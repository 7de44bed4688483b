/* being written */
typedef int nb_progress_translation_unit;
