from sglang_speckv.cli import main

main()
