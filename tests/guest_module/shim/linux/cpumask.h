/* Sets of CPUs are only passed on. */
#pragma once

struct cpumask;
