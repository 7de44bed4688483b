/* being written */
typedef int nb_file_translation_unit;
