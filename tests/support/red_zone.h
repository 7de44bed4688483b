/* What a checked build's arenas put behind each allocation (base/arena.h): taken with it, copied with none. */
#ifndef NB_TESTS_RED_ZONE_H
#define NB_TESTS_RED_ZONE_H

#ifdef NB_CHECKED_ARENAS
enum { NB_TEST_RED_ZONE = 256 };
#else
enum { NB_TEST_RED_ZONE = 0 };
#endif

#endif
