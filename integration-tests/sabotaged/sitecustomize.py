"""Found first by every Python process of a sabotaged test run; breaks the code as the test process does."""

import saboteurs

saboteurs.apply_from_environment()
