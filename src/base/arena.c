/* being written */
typedef int nb_arena_translation_unit;
