import unittest

from greet import greet


class GreetTest(unittest.TestCase):
    def test_a_name_is_greeted(self):
        self.assertEqual(greet("yard"), "Hello, yard!")

    def test_no_name_means_the_world(self):
        for name in ["", "  "]:
            with self.subTest(name=name):
                self.assertEqual(greet(name), "Hello, world!")


if __name__ == "__main__":
    unittest.main()
